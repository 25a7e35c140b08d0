"""What is trained is what is folded: merged kernels, branches and the deploy form are one function."""

import pytest
import torch
from torch.nn import functional as F

from espan_deploy.networks.span.espan import ESPAN
from training.evaluate import deploy_form
from training.merge import merged_kernels, rep_convs
from training.network import BLOCKS, TrainingNetwork, to_scale

EXACT = 1e-12
"""float64 sums of a few thousand terms near one, in another order."""
BFLOAT16_COSINE = 0.99
"""Direction of a bfloat16 gradient against float32's; eight bits of mantissa leave an error of some per cent."""


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(2, 3, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_deploy_form_equals_the_branches_border_included(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    espan = ESPAN(training_form=True).double()
    with torch.no_grad():
        difference = (deploy_form(espan)(image) - espan(image)).abs()
    assert difference.max() < EXACT
    difference[..., 1:-1, 1:-1] = 0
    assert difference.max() < EXACT  # the border ring by itself


def test_merged_forward_equals_the_network(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4).double()
    with torch.no_grad():
        assert (network.image(image) - network.espan(image)).abs().max() < EXACT


def test_teacher_and_student_equal_their_definition(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4, extra_blocks=2, student=True).double()
    espan, tail = network.espan, network.student
    assert tail is not None
    with torch.no_grad():
        shallow = espan.conv_1(image)
        features = [shallow]
        for i in range(BLOCKS):
            features.append(espan.get_submodule(f"block_{i + 1}")(features[-1]))
        first, shared = features[1], features[-1]
        student = tail.upsampler(tail.conv_cat(torch.cat([shallow, tail.conv_2(shared), first, shared], 1)))
        last = espan.teacher_block_seq(network.extra[1](network.extra[0](shared)))
        fused = espan.tea_conv_cat(torch.cat([shallow, espan.tea_conv_2(last), first, last], 1))
        outputs = network(image)
        assert (outputs[0] - espan.tea_upsampler[0](fused)).abs().max() < EXACT
        assert (outputs[1] - student).abs().max() < EXACT


def test_every_branch_gets_the_gradient_it_would_get_unmerged(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4).double()
    gradients = []
    for output in (network.image(image), network.espan(image)):
        network.zero_grad()
        output.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.espan.parameters()])
    for merged, branches in zip(*gradients, strict=True):
        assert merged is not None
        assert (merged - branches).abs().max() < EXACT


def test_frozen_branches_leave_the_function_and_the_gradient_of_the_rest(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4, extra_blocks=1, student=True).double()
    outputs, gradients = [], []
    for frozen in (False, True):
        if frozen:
            network.freeze_branches()
        network.zero_grad()
        teacher, student = network(image)
        assert student is not None
        (teacher.square().mean() + student.square().mean()).backward()
        outputs.append(teacher.detach())
        gradients.append({name: value.grad for name, value in network.named_parameters() if value.grad is not None})
    assert (outputs[0] - outputs[1]).abs().max() < EXACT
    still = {name for name in gradients[0] if ".rep." not in name or ".rep.kxk." in name}
    assert gradients[1].keys() == still
    assert all((gradients[0][name] - gradients[1][name]).abs().max() < EXACT for name in still)


def test_bfloat16_gradients_point_where_float32_gradients_do(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = TrainingNetwork(scale=4)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        network.zero_grad()
        output, _ = network(image.to(dtype))
        (output.float() - 0.5).abs().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert F.cosine_similarity(*gradients, dim=0) > BFLOAT16_COSINE


def test_merging_knows_every_position() -> None:
    network = TrainingNetwork(scale=4)
    assert merged_kernels(network).keys() == rep_convs(network).keys()
    assert len(rep_convs(network)) == 20  # and tea_conv_cat, which has no branches: 21 convolutions


def test_a_grown_upsampler_repeats_its_pixels(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    small = TrainingNetwork(scale=2, student=True).double()
    large = TrainingNetwork(scale=4, student=True).double()
    large.load_state_dict(to_scale(small.state_dict(), 2, 4))
    with torch.no_grad():
        for a, b in zip(small(image), large(image), strict=True):
            enlarged = F.interpolate(F.pixel_shuffle(a, 2), scale_factor=2, mode="nearest")
            assert (enlarged - F.pixel_shuffle(b, 4)).abs().max() < EXACT
