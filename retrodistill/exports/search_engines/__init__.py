"""What Elasticsearch and OpenSearch have in common as stores; their dialects are in `exports`."""
