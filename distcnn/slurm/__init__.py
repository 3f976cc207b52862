"""Jobs under Slurm: `distcnn.slurm.submit` from Python, `distcnn slurm` from a shell."""

from distcnn.slurm.job import BatchScript, Job, batch_script, submit

__all__ = ["BatchScript", "Job", "batch_script", "submit"]
