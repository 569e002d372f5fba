"""Loads an engine whose experts come out of a cache."""

from functools import partial
from pathlib import Path

from model_code.common import kernels
from model_code.common.architecture import ModelError, read
from model_code.common.aws import client
from model_code.common.chat import folder_template
from model_code.common.engine.native import NativeEngine
from model_code.common.errors import SettingsError, WeightsError
from model_code.common.server.settings import Settings
from model_code.common.tokenizer import FolderTokenizer
from model_code.common.weights import Location, fetch
from model_code.moe.experts.cache import ExpertCache
from model_code.moe.experts.index import EXPERTS_FILE, ExpertIndex, read_index
from model_code.moe.experts.metrics import ExpertMetrics
from model_code.moe.experts.module import install
from model_code.moe.experts.source import DiskSource, S3Source, Source
from model_code.moe.serve.settings import ExpertSettings


def load(
    settings: Settings, experts: ExpertSettings, metrics: ExpertMetrics
) -> tuple[NativeEngine, ExpertCache | None]:
    """Return the engine, and the cache of its experts if there is a budget.

    Raises:
        SettingsError: The budget is too small, or the weights are not of a kind to divide.
        WeightsError: Weights are missing, damaged or of another model.
    """
    folder = _fetched(settings, experts)
    if experts.device == "neuron":
        return _on_neuron(folder, settings), None
    kernels.loaded()  # compiles them, if that was not done before: no request shall wait for it
    make = partial(
        NativeEngine.load, folder, slots=settings.slots, context=settings.context,
        dtype=settings.dtype, quantization=settings.quantization,
    )  # fmt: skip
    if experts.budget_bytes is None:
        engine, cache = make(), None
    else:
        index = _index(folder)
        source = _source(settings, experts, folder, index)
        cache = ExpertCache(
            index, source, metrics, budget_bytes=experts.budget_bytes, loads=experts.loads
        )
        metrics.budget_bytes = cache.slots * index.expert_bytes
        engine = make(prepare=partial(install, cache=cache, prefetch=experts.prefetch))
    if engine.has_experts:
        engine.trace.count = metrics.visited
    return engine, cache


def _on_neuron(folder: Path, settings: Settings) -> NativeEngine:
    """Return an engine that runs the graphs beside the weights."""
    from model_code.moe.static import neuron
    from model_code.moe.static.compile import FOLDER
    from model_code.moe.static.graphs import GraphDecoder, load_graphs

    if not neuron.present():
        raise SettingsError(
            f"ISOMORPH_DEVICE is 'neuron', and there is no {neuron.DEVICE}; allowed here: cpu"
        )
    graphs, dtype = load_graphs(folder / FOLDER, folder / "config.json")
    decoder = GraphDecoder(read(folder), graphs, dtype)
    if (decoder.slots, decoder.context) != (settings.slots, settings.context):
        raise SettingsError(
            f"ISOMORPH_SLOTS and ISOMORPH_CONTEXT are {settings.slots} and {settings.context}; the "
            f"graphs were compiled for {decoder.slots} and {decoder.context}"
        )
    tokenizer = FolderTokenizer(folder, decoder.architecture.vocabulary)
    return NativeEngine(
        decoder, tokenizer, folder_template(folder), slots=settings.slots, context=settings.context
    )


def _fetched(settings: Settings, experts: ExpertSettings) -> Path:
    where = settings.weights, settings.weights_sha256, settings.state
    if experts.source != "s3":
        return fetch(*where)
    # experts.json is read from the part that is fetched: it is listed in the manifest as well.
    return fetch(*where, only=lambda path: not path.startswith("experts-layer-"))


def _index(folder: Path) -> ExpertIndex:
    try:
        return read_index(folder, read(folder))
    except ModelError as error:
        raise WeightsError(str(error)) from error


def _source(
    settings: Settings, experts: ExpertSettings, folder: Path, index: ExpertIndex
) -> Source:
    if experts.source == "disk":
        return DiskSource(folder, index)
    if not (folder / EXPERTS_FILE).is_file():
        raise SettingsError(
            f"ISOMORPH_EXPERT_SOURCE is 's3', and {settings.weights} has no {EXPERTS_FILE}; divide "
            f"the checkpoint with python -m model_code.moe.experts.layout and push it again"
        )
    location = Location.parse(settings.weights, settings.weights_sha256)
    return S3Source(
        location, index, settings.state / "experts" / location.sha256[:16],
        partial(client, "s3", attempts=2, connections=experts.loads),
    )  # fmt: skip
