"""``python -m prunus``."""

from .cli.main import app

if __name__ == "__main__":
    app()
