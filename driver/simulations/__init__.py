"""Simulated steps as text, JSON, a page and tables, compared with others, and with what would make them fit."""
