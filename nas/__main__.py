"""`python -m nas` is `nas`; so is `accelerate launch -m nas`, in several processes."""

from nas.cli.app import main

if __name__ == "__main__":
    main()
