"""`python -m distcnn`: the command line."""

from distcnn.cli import program

if __name__ == "__main__":
    program()
