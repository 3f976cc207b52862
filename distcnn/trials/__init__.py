"""What is behind `distcnn trials`."""
