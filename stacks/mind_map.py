"""The mind map of the whole: headings, promises with the stack that keeps them, figures."""

from stacks.innovation import Claim, Topic, computed, measured, vendor

TRN2 = "https://aws.amazon.com/ec2/instance-types/trn2/"
INF2 = "https://aws.amazon.com/ec2/instance-types/inf2/"
P6 = "https://aws.amazon.com/ec2/instance-types/p6/"
P5 = "https://aws.amazon.com/ec2/instance-types/p5/"
DEEPSEEK_V3 = "isomorph plan deepseek-v3"


def _figure(claim: Claim, by: str) -> Topic:
    return Topic(claim.figure, by=by, claim=claim)


ATTENTION = Topic(
    "Attention Mechanisms",
    children=(
        Topic(
            "Multi-Head Latent Attention",
            by="mla",
            children=(
                Topic("DeepSeek-V3 Implementation", by="mla"),
                Topic("KV Cache Compression", by="mla"),
                Topic("ElastiCache Integration", by="mla"),
            ),
        ),
        Topic(
            "Grouped-Query Attention",
            by="gqa",
            children=(
                _figure(measured("25-40% Computation Reduction", "isomorph bench gqa"), "gqa"),
                Topic("EC2 Compute Optimized", by="gqa"),
            ),
        ),
        Topic(
            "Sliding Window Attention",
            by="sliding_window",
            children=(
                _figure(
                    measured("75% Memory Savings", "isomorph bench sliding_window"),
                    "sliding_window",
                ),
                Topic("Gemma 3 Architecture", by="sliding_window"),
                Topic("EC2 R7i Instances", by="sliding_window"),
            ),
        ),
    ),
)

EXPERTS = Topic(
    "Mixture of Experts",
    by="moe",
    children=(
        Topic(
            "Sparse Activation",
            by="moe-training",
            children=(
                _figure(computed("671B Total Parameters", DEEPSEEK_V3), "moe-training"),
                _figure(computed("37B Active Parameters", DEEPSEEK_V3), "moe-training"),
                _figure(
                    measured("85% Inference Cost Reduction", "isomorph bench moe"), "moe-serving"
                ),
            ),
        ),
        Topic(
            "Expert Routing",
            by="moe-serving",
            children=(
                _figure(computed("256 Experts Total", DEEPSEEK_V3), "moe-training"),
                _figure(computed("9 Active per Token", DEEPSEEK_V3), "moe-training"),
                Topic("Application Load Balancer", by="moe-serving"),
            ),
        ),
        Topic(
            "Hardware Support",
            children=(
                Topic("Trainium2 Sparsity", by="moe-training"),
                Topic("Inferentia2 Optimization", by="moe-serving"),
                _figure(
                    measured("16:4 Sparsity Pattern", "isomorph bench moe_training"), "moe-training"
                ),
            ),
        ),
    ),
)

NORMALIZATION = Topic(
    "Normalization Techniques",
    by="normalization",
    children=(
        Topic(
            "RMSNorm Placement",
            by="normalization",
            children=(
                Topic("Pre-Norm vs Post-Norm", by="normalization"),
                Topic("Training Stability", by="normalization"),
                Topic("SageMaker Experiments", by="normalization"),
            ),
        ),
        Topic(
            "QK-Normalization",
            by="normalization",
            children=(
                Topic("Query-Key Normalization", by="normalization"),
                Topic("OLMo 2 Innovation", by="normalization"),
                Topic("Gradient Stability", by="normalization"),
            ),
        ),
    ),
)

INFRASTRUCTURE = Topic(
    "AWS Infrastructure",
    children=(
        Topic(
            "Custom Silicon",
            children=(
                Topic(
                    "Trainium2 Chips",
                    by="moe-training",
                    children=(
                        _figure(vendor("30-40% Cost Advantage", TRN2), "moe-training"),
                        _figure(vendor("83 Petaflops Dense", TRN2), "moe-training"),
                    ),
                ),
                Topic(
                    "Inferentia2 Chips",
                    by="moe-serving",
                    children=(
                        _figure(vendor("4x Throughput", INF2), "moe-serving"),
                        _figure(vendor("50% Better Perf/Watt", INF2), "moe-serving"),
                    ),
                ),
            ),
        ),
        Topic(
            "GPU Instances",
            children=(
                Topic(
                    "P6e-GB200",
                    by="moe-training",
                    children=(
                        _figure(vendor("72 Blackwell GPUs", P6), "moe-training"),
                        _figure(vendor("360 Petaflops", P6), "moe-training"),
                    ),
                ),
                Topic(
                    "P5en Enhanced",
                    by="moe-training",
                    children=(
                        _figure(vendor("3200 Gbps Networking", P5), "moe-training"),
                        _figure(vendor("35% Lower Latency", P5), "moe-training"),
                    ),
                ),
            ),
        ),
        Topic(
            "Managed Services",
            children=(
                Topic(
                    "SageMaker HyperPod",
                    by="moe-training",
                    children=(
                        Topic("Flexible Training Plans", by="moe-training"),
                        Topic("Task Governance", by="moe-training"),
                    ),
                ),
                Topic(
                    "Amazon Bedrock",
                    by="bedrock",
                    children=(
                        _figure(
                            vendor("100+ Foundation Models", "https://aws.amazon.com/bedrock/"),
                            "bedrock",
                        ),
                        Topic("Unified API", by="bedrock"),
                    ),
                ),
            ),
        ),
    ),
)

_DISTILLATION = "https://aws.amazon.com/bedrock/model-distillation/"
OPTIMIZATION = Topic(
    "Optimization Strategies",
    children=(
        Topic(
            "Model Distillation",
            by="distillation",
            children=(
                _figure(vendor("500% Faster Inference", _DISTILLATION), "distillation"),
                _figure(vendor("75% Cost Reduction", _DISTILLATION), "distillation"),
                Topic("Bedrock Automation", by="distillation"),
            ),
        ),
        Topic(
            "Prompt Engineering",
            children=(
                _figure(
                    measured("Caching 85% Latency Reduction", "isomorph bench mla"),
                    "prompt_caching",
                ),
                _figure(
                    vendor(
                        "Intelligent Routing 30% Savings",
                        "https://aws.amazon.com/bedrock/intelligent-prompt-routing/",
                    ),
                    "prompt_routing",
                ),
                Topic("RAG Integration", by="rag"),
            ),
        ),
        Topic(
            "Memory Management",
            children=(
                Topic("KV Cache Optimization", by="mla"),
                Topic("Expert Weight Caching", by="moe-serving"),
                Topic("S3 Intelligent Tiering", by="foundation"),
            ),
        ),
    ),
)

MIND_MAP = Topic(
    "Modern LLM<br/>Architecture",
    children=(ATTENTION, EXPERTS, NORMALIZATION, INFRASTRUCTURE, OPTIMIZATION),
)
