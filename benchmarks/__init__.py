"""distcnn beside what else one would take: `make bench DIR=...` runs all of it and writes docs/results.md."""
