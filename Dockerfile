ARG BASE_IMAGE=python:3.13-slim-bookworm
FROM ${BASE_IMAGE} AS build

WORKDIR /src
# For strip: LLVM's symbols are 19 MB.
RUN apt-get update -qq \
 && apt-get install -qq -y --no-install-recommends binutils \
 && rm -rf /var/lib/apt/lists/*

# The dependencies have a layer of their own, which lasts until the lock file changes. The environment has no pip: that
# of the base installs into it. Other packages' own tests are 100 MB, their sources in C and their stubs 12 MB.
COPY requirements.lock ./
RUN python3 -m venv --without-pip /opt/bids-lacuna \
 && python3 -m pip --python /opt/bids-lacuna/bin/python install \
      --no-cache-dir --disable-pip-version-check --no-compile --require-hashes -r requirements.lock \
 && find /opt/bids-lacuna -type d -name tests -prune -exec rm -rf {} + \
 && find /opt/bids-lacuna -type f -regex '.*\.\(c\|cpp\|h\|pxd\|pyi\|pyx\)' -delete \
 && strip --strip-unneeded /opt/bids-lacuna/lib/python3*/site-packages/llvmlite/binding/libllvmlite.so
COPY pyproject.toml README.md LICENSE ./
COPY bids_lacuna bids_lacuna
RUN python3 -m pip --python /opt/bids-lacuna/bin/python install \
      --no-cache-dir --disable-pip-version-check --no-compile --no-deps .
COPY run.py /opt/bids-lacuna/

# Transforms between templates, of some 100 MB each, which the program looks for in TEMPLATEFLOW_HOME.
ARG TEMPLATEFLOW=
RUN mkdir /opt/templateflow \
 && if [ -n "$TEMPLATEFLOW" ]; then \
      python3 -c 'import pathlib, urllib.request; \
a, b = "MNI152NLin6Asym", "MNI152NLin2009cAsym"; \
names = [f"tpl-{x}/tpl-{x}_from-{y}_mode-image_xfm.h5" for x, y in ((a, b), (b, a))]; \
[pathlib.Path("/opt/templateflow", name).parent.mkdir() for name in names]; \
[urllib.request.urlretrieve(f"https://templateflow.s3.amazonaws.com/{name}", f"/opt/templateflow/{name}") for name in names]'; \
    fi

# The kernels, compiled for a family of processors that bids_lacuna/runtime/numba_cache.py names, and which it takes from
# there at run time. The folder has another name whenever the code or numba differs, since copies outlast the image.
WORKDIR /opt/bids-lacuna
RUN mkdir compiled \
 && if [ "$(uname -m)" = x86_64 ]; then \
      code=$(cat lib/python3*/site-packages/bids_lacuna/kernels/*.py /src/requirements.lock | sha256sum | cut -c -12) \
   && NUMBA_CACHE_DIR=/opt/bids-lacuna/compiled/$code NUMBA_CPU_NAME=x86-64-v3 NUMBA_CPU_FEATURES= \
      bin/python -c 'from bids_lacuna.kernels import compile_for, compile_for_cells, compile_for_nulls; \
[compile(kind, of) for compile in (compile_for, compile_for_cells) \
for kind, of in (("int16", ["float32", "float64"]), ("float32", []))]; compile_for_nulls()' \
   && ln -s "$code" compiled/current; \
    fi

# Bytecode of what runs import: that of all that is installed is 110 MB.
RUN MPLCONFIGDIR=/tmp NUMBA_CACHE_DIR=/tmp bin/python -c 'import bids_lacuna.cli, bids_lacuna.demo, \
bids_lacuna.app.participant, bids_lacuna.app.group, bids_lacuna.app.reports, bids_lacuna.app.connectome, \
bids_lacuna.app.fetch, bids_lacuna.cluster, bids_lacuna.connectome.importers.bids, bids_lacuna.connectome.importers.layouts, \
bids_lacuna.report.participant, bids_lacuna.report.group, bids_lacuna.transforms.resampling, distributed.deploy.local'

FROM ${BASE_IMAGE}

COPY --from=build /opt/bids-lacuna /opt/bids-lacuna
COPY --from=build /opt/templateflow /opt/templateflow

ARG VERSION=unreleased
ARG REVISION=unknown
ARG BASE_DIGEST=unknown
ARG IMAGE=ghcr.io/bids-lacuna/bids_lacuna
LABEL org.opencontainers.image.title="bids-lacuna" \
      org.opencontainers.image.description="Lesion network mapping as a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.opencontainers.image.source="https://github.com/bids-lacuna/bids_lacuna" \
      org.opencontainers.image.documentation="https://github.com/bids-lacuna/bids_lacuna#readme" \
      org.opencontainers.image.licenses="Apache-2.0"

# Dask would copy its default settings into the home, which may be the host's.
# NUMBA_CACHE_DIR is left to the program, which takes a folder of this user's own: Apptainer shares /tmp with the
# host, where a name written here would be the same for all users, and numba runs what it finds cached.
ENV PATH=/opt/bids-lacuna/bin:${PATH} \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DASK_CONFIG=/opt/bids-lacuna/dask \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    BIDS_LACUNA_COMPILED=/opt/bids-lacuna/compiled/current \
    BIDS_LACUNA_CONTAINER_TYPE=docker \
    BIDS_LACUNA_CONTAINER_TAG=${IMAGE}:${VERSION}

USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/bids-lacuna/bin/python", "/opt/bids-lacuna/run.py"]
