"""What a run leaves behind: the run folder, videos, curves and a page that shows them."""
