"""The driver and its trial processes: starting Ray, placing and retrying trials; everything that imports Ray."""
