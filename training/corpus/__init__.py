"""From raw text of any kind to token shards."""
