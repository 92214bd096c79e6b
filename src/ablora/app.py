"""The ordinary Hydra application, `python -m ablora.app method=lora`, with Hydra's own flags, launchers, sweepers."""

from ablora.config import hydra_main

if __name__ == "__main__":
    hydra_main()
