ARG BASE_IMAGE=python:3.13-slim-bookworm
FROM ${BASE_IMAGE} AS build

RUN python3 -m venv /opt/bids-lacuna
WORKDIR /src
# The dependencies have a layer of their own, which lasts until pyproject.toml changes.
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > requirements.txt \
 && /opt/bids-lacuna/bin/python -m pip install --no-cache-dir --disable-pip-version-check -r requirements.txt
COPY README.md LICENSE ./
COPY bids_lacuna bids_lacuna
RUN /opt/bids-lacuna/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps .
COPY run.py /opt/bids-lacuna/

FROM ${BASE_IMAGE}

COPY --from=build /opt/bids-lacuna /opt/bids-lacuna

ARG VERSION=unreleased
LABEL org.opencontainers.image.title="bids-lacuna" \
      org.opencontainers.image.description="Lesion network mapping as a BIDS App" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.source="https://github.com/bids-lacuna/bids_lacuna" \
      org.opencontainers.image.licenses="Apache-2.0"

# NUMBA_CACHE_DIR is left to the program, which takes a folder of this user's own: Apptainer shares /tmp with the
# host, where a name written here would be the same for all users, and numba runs what it finds cached.
ENV PATH=/opt/bids-lacuna/bin:${PATH} \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BIDS_LACUNA_CONTAINER_TYPE=docker \
    BIDS_LACUNA_CONTAINER_TAG=bidslacuna/bids-lacuna:${VERSION}

USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["/opt/bids-lacuna/bin/python", "/opt/bids-lacuna/run.py"]
