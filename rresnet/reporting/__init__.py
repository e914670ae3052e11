"""Output from the tables for people and tools: the report, CSV and JSON, TensorBoard and MLflow."""
