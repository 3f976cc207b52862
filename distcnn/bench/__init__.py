"""What is behind `distcnn bench`."""
