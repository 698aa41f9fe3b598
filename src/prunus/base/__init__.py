"""What every other folder may use: errors, the team of processes, the machine's memory.

It imports nothing else of the package.
"""
