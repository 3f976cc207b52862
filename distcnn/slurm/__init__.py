"""What is behind `distcnn slurm`."""
