"""The Parquet tables: their columns, and how they are written and read in a folder or in object storage."""
