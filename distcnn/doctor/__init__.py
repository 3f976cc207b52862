"""What is behind `distcnn doctor`."""
