"""What each loss term is, and which weights it reaches."""

import json

import pytest
import torch
from end2race.config import ActionWeights, DistillationSection, StudentConfig
from end2race.data.calibration import level_camera
from end2race.losses import Distillation, TeacherAnswers, behaviour_cloning
from end2race.models.presets import preset
from end2race.models.student import CameraBEVStudent
from loom.errors import UserError
from loom.loop import Losses

CAMERA = level_camera(128, 64, focal_px=64.0, position_m=(0.2, 0.0, 0.2))
SHAPES = {"actions": (3, 2), "bev_vec": (128,), "gru_out": (3, 128), "bev_feat": (64, 8, 8)}
ALL = DistillationSection(bevfeat_weight=1.0)


def distillation(section=ALL, shapes=SHAPES):
    return Distillation(section, preset("racing"), shapes, map_channels=64)


def answers(seed=1, windows=2, shapes=SHAPES, confidence=None):
    """A teacher's answers that are not the student's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(windows, *shape, generator=generator)

    fields = {
        "actions": draw(3, 2),
        "bev_vec": draw(3, *shapes["bev_vec"]),
        "gru_out": draw(*shapes["gru_out"]),
        "bev_feat": draw(3, *shapes["bev_feat"]),
    }
    return TeacherAnswers(fields, torch.ones(windows) if confidence is None else confidence)


def student():
    torch.manual_seed(0)
    return CameraBEVStudent(preset("racing"), CAMERA).eval()


def forward(model):
    """The model's answers on two random windows of three frames."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 128, 3), dtype=torch.uint8, generator=generator)
    speed, steering = 6 * torch.rand(2, 2, 3, 1, generator=generator)
    actions, _, aux = model(images, speed, steering, return_aux=True)
    return actions, aux


def own_answers(model):
    """The student's answers as if they were its teacher's."""
    with torch.no_grad():
        actions, aux = forward(model)
    fields = {
        "actions": actions,
        "bev_vec": aux["bev_vec_seq"],
        "gru_out": aux["gru_out"],
        "bev_feat": aux["bev_feat_seq"],
    }
    return TeacherAnswers(fields, torch.ones(2))


def reached(*modules):
    """The top-level parts with a gradient that is not zero."""
    return {
        name.split(".")[0] if not name.startswith("policy") else ".".join(name.split(".")[:2])
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }


ENCODER = {"image_encoder", "view", "backbone"}
POLICY = {"policy.speed", "policy.steering", "policy.gru"}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("kd_action", ENCODER | POLICY | {"policy.output_layer"}),
        ("kd_bev_vec", ENCODER | {"adapters"}),
        ("kd_temporal", ENCODER | POLICY | {"adapters"}),
        ("kd_bev_feat", ENCODER | {"adapters"}),
    ],
)
def test_each_term_reaches_exactly_its_modules(term, expected):
    model, distils = student(), distillation()
    distils.terms(*forward(model), answers())[term].value.backward()
    assert reached(model, distils) == expected
    trained = {name.split(".")[1] for name, p in distils.named_parameters() if p.grad is not None}
    of_term = {"kd_bev_vec": {"bev_vec"}, "kd_temporal": {"gru_out"}, "kd_bev_feat": {"bev_feat"}}
    assert trained == of_term.get(term, set())


def test_the_map_term_does_not_reach_the_projection_to_a_vector():
    model, distils = student(), distillation()
    distils.terms(*forward(model), answers())["kd_bev_feat"].value.backward()
    assert all(p.grad is None for p in model.backbone.vec_proj.parameters())


def test_a_student_that_is_its_own_teacher_has_no_loss():
    model = student()
    terms = distillation().terms(*forward(model), own_answers(model))
    assert set(terms) == {"kd_action", "kd_bev_vec", "kd_temporal", "kd_bev_feat"}
    for name, term in terms.items():
        assert term.value.item() == pytest.approx(0.0, abs=1e-6), name


def test_terms_are_those_of_their_definition():
    teacher, model = answers(), student()
    actions, aux = forward(model)
    terms = distillation().terms(actions, aux, teacher)
    gap = (actions - teacher.fields["actions"]).abs().double()
    huber = torch.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
    assert terms["kd_action"].value.item() == pytest.approx(huber.item(), rel=1e-5)
    own, wanted = aux["bev_vec_seq"].double(), teacher.fields["bev_vec"].double()
    cosine = (own * wanted).sum(-1) / (own.norm(dim=-1) * wanted.norm(dim=-1))
    assert terms["kd_bev_vec"].value.item() == pytest.approx((1 - cosine).mean().item(), rel=1e-5)
    square = (aux["gru_out"] - teacher.fields["gru_out"]).square().mean()
    assert terms["kd_temporal"].value.item() == pytest.approx(square.item(), rel=1e-5)


def test_a_window_without_an_answer_adds_nothing():
    model = student()
    actions, aux = forward(model)
    full, half = answers(), answers(confidence=torch.tensor([1.0, 0.0]))
    alone = TeacherAnswers({k: v[:1] for k, v in full.fields.items()}, torch.ones(1))
    first = {name: value[:1] for name, value in aux.items()}
    terms = distillation().terms(actions, aux, half)
    reference = distillation().terms(actions[:1], first, alone)
    for name, term in terms.items():
        assert term.value.item() == pytest.approx(reference[name].value.item() / 2, rel=1e-5)


def test_a_wider_teacher_is_reached_through_an_adapter():
    shapes = {"actions": (3, 2), "bev_vec": (3, 256), "gru_out": (3, 640), "bev_feat": (384, 8, 8)}
    distils = distillation(shapes=shapes)
    terms = distils.terms(*forward(student()), answers(shapes={**shapes, "bev_vec": (256,)}))
    assert all(torch.isfinite(term.value) for term in terms.values())
    assert distils.adapters["gru_out"].weight.shape == (640, 128)


def test_a_teacher_s_map_of_another_size_is_refused():
    model = student()
    actions, aux = forward(model)
    wide = {**SHAPES, "bev_feat": (64, 16, 16)}
    with pytest.raises(UserError, match="map has 8 x 8 cells, its teacher's 16 x 16"):
        distillation(shapes=wide).terms(actions, aux, answers(shapes=wide))


def test_the_student_is_deployed_without_adapters():
    assert not any(
        "adapter" in name for name in CameraBEVStudent(preset("racing"), CAMERA).state_dict()
    )


def test_weights_of_zero_are_behaviour_cloning_to_the_bit():
    nothing = DistillationSection(action_weight=0.0, bevvec_weight=0.0, temporal_weight=0.0)
    gradients = []
    for with_teacher in (False, True):
        model = student()
        actions, aux = forward(model)
        target = answers().fields["actions"]
        terms = behaviour_cloning(actions, target, torch.tensor([True, True]), ActionWeights())
        if with_teacher:
            distils = distillation(nothing)
            terms |= distils.terms(actions, aux, answers())
            assert list(distils.parameters()) == []
        Losses(terms).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_vector_term_is_a_share_that_counts_beside_behaviour_cloning():
    """Mean over normalised components would be 2 (1 - cos) / 128, below a thousandth here."""
    model = student()
    actions, aux = forward(model)
    target = torch.stack([6 * torch.randn(2, 3), 3 + torch.randn(2, 3)], -1)
    terms = behaviour_cloning(actions, target, torch.tensor([True, True]), ActionWeights())
    terms |= distillation(DistillationSection()).terms(actions, aux, answers())
    losses = Losses(terms)
    share = terms["kd_bev_vec"].value * terms["kd_bev_vec"].weight / losses.total
    assert share.item() > 0.01


def test_behaviour_cloning_is_a_weighted_squared_error_over_labelled_windows():
    actions = torch.tensor([[[2.0, 1.0], [4.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]]])
    target = torch.zeros(2, 2, 2)
    weights = ActionWeights(smooth=0.5)
    terms = behaviour_cloning(actions, target, torch.tensor([True, False]), weights)
    assert terms["steer"].value.item() == (4 + 16) / 4  # two frames of two windows
    assert terms["speed"].value.item() == 0.5
    assert terms["smooth"].value.item() == (4 + 0) / 4
    assert Losses(terms).total.item() == pytest.approx(5 + 0.05 * 0.5 + 0.5 * 1)


@pytest.mark.parametrize(
    ("settings", "steer"),
    [
        ({}, 1.0),
        ({"label_fraction": 0.1}, 1.0),
        ({"kd": {"cache_dir": "cache"}}, 1.0),
        ({"kd": {"cache_dir": "cache"}, "label_fraction": 0.1}, 0.1),
        ({"kd": {"cache_dir": "cache"}, "labelled_segments": ["segment_0001"]}, 0.1),
        ({"kd": {"cache_dir": "cache"}, "label_fraction": 0.1, "loss": {"steer_weight": 2}}, 2.0),
    ],
)
def test_few_labels_beside_a_teacher_count_less_unless_their_weight_is_given(settings, steer):
    assert StudentConfig.model_validate_json(json.dumps(settings)).action_weights == (
        steer,
        0.05,
        0.0,
    )


def test_no_labelled_window_is_no_loss_and_no_gradient():
    actions = torch.ones(2, 3, 2, requires_grad=True)
    terms = behaviour_cloning(
        actions, torch.zeros(2, 3, 2), torch.tensor([False, False]), ActionWeights()
    )
    total = Losses(terms).total
    total.backward()
    assert total.item() == 0.0
    assert (actions.grad == 0).all()
