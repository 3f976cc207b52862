"""`python -m distcnn.slurm`: print the folder of the shell files, for batch scripts, of which Slurm runs a copy."""

from distcnn.slurm.script import folder

if __name__ == "__main__":
    print(folder())
