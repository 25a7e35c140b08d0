"""Run espan-deploy from a checkout: ``python cli.py upscale photos/ upscaled/``."""

from espan_deploy.cli.main import main

if __name__ == "__main__":
    main()
