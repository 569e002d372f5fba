"""The map as data: every innovation, every node of both diagrams, every figure in them.

Pure data, so that `isomorph list` and `isomorph map` need not import aws_cdk. Which stack class
belongs to which slug is in stacks/registry.py. A node is real when its stack's file is there.
"""

from stacks.innovation import (
    Branch,
    Claim,
    FlowNode,
    Innovation,
    Status,
    computed,
    measured,
    status_of,
)

MOE = Innovation(
    slug="moe",
    title="Mixture of experts",
    runs_on="SageMaker HyperPod to train, Inferentia2 to serve",
    because="few of the parameters work on a token, all of them must be in memory",
    stacks=("moe-training", "moe-serving"),
    serves_weights=True,
    branch=Branch(
        FlowNode(
            "MoE",
            ("Mixture-of-Experts", "85% parameter reduction"),
            by="moe",
            claim=computed("85% parameter reduction", "isomorph plan deepseek-v3"),
        ),
        fill="#e1f5fe",
        targets=(
            FlowNode(
                "MoE_AWS",
                ("SageMaker HyperPod", "Heterogeneous clusters", "P5e instances"),
                by="moe-training",
            ),
            FlowNode("MoE_INF", ("EC2 Inf2 instances", "Sparse model serving"), by="moe-serving"),
        ),
        impact=measured(
            "Enables 60-85% inference cost reduction through parameter sparsity",
            "isomorph bench moe",
        ),
    ),
)

MLA = Innovation(
    slug="mla",
    title="Multi-head latent attention",
    runs_on="ElastiCache and R7i nodes",
    because="a latent is small enough that many servers can share one cache of them",
    serves_weights=True,
    branch=Branch(
        FlowNode("MLA", ("Multi-Head Latent Attention", "KV cache optimization"), by="mla"),
        fill="#f3e5f5",
        targets=(
            FlowNode("MLA_AWS", ("Amazon ElastiCache", "Redis for compressed KV cache"), by="mla"),
            FlowNode("MLA_MEM", ("EC2 memory-optimized", "R7i instances"), by="mla"),
        ),
        impact="Significant KV cache memory reduction, optimized for ElastiCache deployment",
    ),
)

GQA = Innovation(
    slug="gqa",
    title="Grouped-query attention",
    runs_on="C7i fleet behind an internal load balancer",
    because="fewer key and value heads leave decoding to the cores, and C7i's have AMX",
    serves_weights=True,
    branch=Branch(
        FlowNode(
            "GQA",
            ("Grouped-Query Attention", "25-40% computation reduction"),
            by="gqa",
            claim=measured("25-40% computation reduction", "isomorph bench gqa"),
        ),
        fill="#fff3e0",
        targets=(
            FlowNode("GQA_AWS", ("EC2 compute-optimized", "C7i instances with AMX"), by="gqa"),
            FlowNode("GQA_SCALE", ("Auto-scaling groups", "Dynamic resource allocation"), by="gqa"),
        ),
        impact=measured(
            "Reduces attention computation by 25-40%, ideal for compute-optimized instances",
            "isomorph bench gqa",
        ),
    ),
)

SLIDING_WINDOW = Innovation(
    slug="sliding_window",
    title="Sliding-window attention",
    runs_on="R7i nodes and Lambda",
    because="a window bounds the cache, so a long prompt fits a small machine",
    serves_weights=True,
    branch=Branch(
        FlowNode(
            "SWA",
            ("Sliding Window Attention", "75% memory savings"),
            by="sliding_window",
            claim=measured("75% memory savings", "isomorph bench sliding_window"),
        ),
        fill="#e8f5e9",
        targets=(
            FlowNode(
                "SWA_AWS",
                ("EC2 high memory bandwidth", "Optimized configurations"),
                by="sliding_window",
            ),
            FlowNode("SWA_EDGE", ("AWS Lambda", "Edge inference scenarios"), by="sliding_window"),
        ),
        impact=measured(
            "Achieves up to 75% memory savings, enabling edge deployment scenarios",
            "isomorph bench sliding_window",
        ),
    ),
)

NORMALIZATION = Innovation(
    slug="normalization",
    title="Advanced normalization",
    runs_on="SageMaker training, tuning and experiments",
    because="where a norm belongs is found by comparing runs",
    branch=Branch(
        FlowNode("AN", ("Advanced Normalization", "Training stability"), by="normalization"),
        fill="#fce4ec",
        targets=(
            FlowNode(
                "AN_AWS", ("SageMaker Training Jobs", "Experiments tracking"), by="normalization"
            ),
            FlowNode(
                "AN_TUNE",
                ("SageMaker Model Tuning", "Hyperparameter optimization"),
                by="normalization",
            ),
        ),
        impact="Improves training stability with minimal complexity overhead",
    ),
)

INNOVATIONS: tuple[Innovation, ...] = (
    MOE,
    MLA,
    GQA,
    SLIDING_WINDOW,
    NORMALIZATION,
    Innovation(
        slug="distillation",
        title="Model distillation",
        runs_on="Amazon Bedrock model customization",
        because="a student that answers as its teacher costs a fraction of it",
    ),
    Innovation(
        slug="prompt_caching",
        title="Prompt caching",
        runs_on="Amazon Bedrock, and the latent cache of mla",
        because="a prefix that many prompts share is computed once",
    ),
    Innovation(
        slug="prompt_routing",
        title="Intelligent prompt routing",
        runs_on="Amazon Bedrock prompt router",
        because="most prompts do not need the larger of two models",
    ),
    Innovation(
        slug="rag",
        title="Retrieval-augmented generation",
        runs_on="Bedrock knowledge base on S3 Vectors",
        because="facts change faster than weights",
    ),
    Innovation(
        slug="bedrock",
        title="Foundation models through one interface",
        runs_on="Amazon Bedrock",
        because="a model that someone else serves is the price to beat",
    ),
)

START = FlowNode("Start", ("LLM Architectural Innovation",), by="foundation")

# What the map says of all of them together.
INSIGHTS: tuple[Claim | str, ...] = (
    "Architectural innovations focus on three main areas: attention, sparsity, and normalization",
    "AWS provides hardware and software support for each innovation category",
    measured("Combined optimizations achieve 60-85% total cost reduction", "isomorph bench moe"),
    "Future architectures will likely continue the trend toward sparsity and efficiency",
)


def status(by: str) -> Status:
    """Return whether what `by` promises is there; `by` is a slug or the id of a stack."""
    slugs = {innovation.slug: innovation for innovation in INNOVATIONS}
    return slugs[by].status if by in slugs else status_of(by)
