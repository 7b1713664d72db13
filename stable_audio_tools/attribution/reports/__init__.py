"""What a reader gets: pages for each clip, their index, and the export for rights databases."""
