"""What one paper alone needs, a package for each paper."""
