"""The composition root: which Ray, starting and finding a cluster, the handle of users."""
