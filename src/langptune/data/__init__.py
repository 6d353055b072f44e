"""Raw files to items and sessions: readers, protocols, and the Parquet contracts between stages."""
