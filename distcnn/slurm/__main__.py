"""`python -m distcnn.slurm` prints the folder of the batch scripts: they ask for it, as Slurm runs a copy of each."""

from distcnn.slurm.script import folder

if __name__ == "__main__":
    print(folder())
