"""Figures, drawn once by matplotlib: as files, and as SVG for a page."""
