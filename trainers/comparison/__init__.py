"""Runs side by side: what is measured of each, how seeds are summed up, and the page that shows it all."""
