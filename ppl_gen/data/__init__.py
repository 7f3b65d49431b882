"""Arrays, frames and files → a checked Table: columns, levels, sizes, units."""
