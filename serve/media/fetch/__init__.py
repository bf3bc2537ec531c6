"""Pictures by URL: fetched by us, once, from public addresses only. Engines are given bytes and never fetch."""
