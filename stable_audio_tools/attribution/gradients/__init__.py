"""What a track's gradient is: layers, passes, measurements and projections, down to a row of numbers."""
