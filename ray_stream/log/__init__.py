"""One partition's durable bytes. No actors, no network, no clock."""
