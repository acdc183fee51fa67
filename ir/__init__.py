"""(described when its first module lands)"""
