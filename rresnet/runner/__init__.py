"""The driver and its trial processes: Ray starts, places and retries; everything that imports Ray."""
