"""The command ``desta``. It sits above all rooms and imports a job's room only when that job is run."""
