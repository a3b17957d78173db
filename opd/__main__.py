"""`python -m opd`, which `accelerate launch -m opd` runs."""

from opd.cli import main

if __name__ == "__main__":
    main()
