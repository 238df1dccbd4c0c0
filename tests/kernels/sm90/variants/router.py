"""384 experts in one group, and eight groups as in DeepSeek-V3."""

from kernels.gpu import router
from kernels.gpu.device import power_of_2
from tests.kernels.sm90.variant import Variant

TYPES = {
    **{"logits": "*fp32", "bias": "*fp32", "ids": "*i32", "weights": "*fp32"},
    **{"num_tokens": "i32", "scale": "fp32"},
}


def choose(num_experts, num_groups, topk_groups):
    experts = num_experts // num_groups
    constants = {
        **{"GROUP_EXPERTS": experts, "NUM_GROUPS": num_groups, "TOPK_GROUPS": topk_groups, "TOP_K": 8},
        **{"NORMALIZE": True, "ROWS": router.token_rows("sm_90"), "TOP_TILE": 8},
        **{"GROUPS_TILE": power_of_2(num_groups), "EXPERTS_TILE": power_of_2(experts)},
    }
    name = f"choose-{num_experts}-groups-{num_groups}"
    return Variant(name, router.choose_kernel, TYPES, constants, router.NUM_WARPS, odd=("num_tokens",))


VARIANTS = [choose(384, 1, 1), choose(256, 8, 4)]
