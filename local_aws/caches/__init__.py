"""Plays ElastiCache: a real Valkey server behind TLS for each shard of a replication group."""
