"""The demo model: the reference prompts to the letter, and accuracy on tasks that it was never trained on."""
import demo_evaluate
import demo_tasks
import pytest


def test_reference_prompts(demo):
    assert demo.generate(demo_tasks.REFERENCE_PROMPTS, gen_length=64, block_length=32).text == demo_evaluate.REFERENCE_ANSWERS


def test_reference_answers_are_what_the_task_generator_says():
    """The generator's own formulae, at the numbers of the reference prompts."""
    wanted = {12 * 4 + 6 * (8 - 4): 0, 120 // 8 * 20 // 60: 1, 60 + 60 // 2 - 5: 2}
    for number, i in wanted.items():
        assert demo_evaluate.REFERENCE_ANSWERS[i].endswith(f"The answer is {number}")


def test_held_out_prompts_are_held_out():
    rng = demo_evaluate.random.Random(0)
    for _ in range(500):
        task, prompt, _ = demo_tasks.sample(rng)
        assert not demo_tasks.held_out(task, prompt)
    assert all(demo_tasks.held_out("run", p) for p in demo_tasks.REFERENCE_PROMPTS)


@pytest.mark.slow
def test_held_out_accuracy(demo):
    """Mean exact match at least 0.92 and no task under 0.80, one token a step. tools/demo_evaluate.py measures 200 a task; 50 here."""
    names = [t for t in demo_tasks.TASKS if t not in demo_tasks.ALWAYS_TRAINED]
    options = {"gen_length": 64, "block_length": 32}
    score = {t: demo_evaluate.exact_match(demo, t, 50, 2026, **options) for t in names}
    assert min(score.values()) >= 0.80 and sum(score.values()) / len(score) >= 0.92, score


@pytest.mark.parametrize(("prompts", "place"), [("", 0), (["What is 17 plus 25?", ""], 1)])
def test_an_empty_text_is_no_question(demo, prompts, place):
    with pytest.raises(ValueError, match=rf"^prompts\[{place}\]: expected at least one token, found none$"):
        demo.generate(prompts)
