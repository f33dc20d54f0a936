"""`python -m jaxqmix`."""

from jaxqmix.cli import main

if __name__ == "__main__":
    main()
