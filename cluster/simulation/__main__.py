"""`python -m cluster.simulation`: see cluster/simulation/cli.py."""

from cluster.simulation.cli import app

if __name__ == "__main__":
    app(prog_name="python -m cluster.simulation")
