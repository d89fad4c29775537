"""What is counted in a compiled program is what is there."""

from .hlo import aliased, collectives, copies_to_hbm, hbm_bytes, shapes, work


def test_work_is_counted_where_it_is_done():
    """Kernels of scalars and what is inside a kernel do not count; what is called and the branch that is taken do."""
    work_of = work(HLO), work(HLO, branch=1)
    assert [sum(kernels) for kernels, _, _ in work_of] == [404 + 400 + 800, 404 + 400 + 500]
    assert [copies for _, copies, _ in work_of] == [1, 0]
    assert "sqrt" in work_of[1].operations and "sqrt" not in work_of[0].operations


HLO = """HloModule jit_step

%fused (p.0: f32[50], p.1: f32[]) -> f32[50] {
  %p.0 = f32[50]{0} parameter(0)
  %p.1 = f32[] parameter(1)
  %b = f32[50]{0} broadcast(%p.1), dimensions={}
  ROOT %m = f32[50]{0} multiply(%p.0, %b)
}

%called (p.2: f32[50]) -> f32[50] {
  %p.2 = f32[50]{0} parameter(0)
  ROOT %n = f32[50]{0:T(1024)} negate(%p.2), metadata={op_name="jit(step)/neg"}
}

%collect (p.3: (f32[50], f32[50])) -> (f32[50]) {
  %p.3 = (f32[50]{0}, f32[50]{0}) parameter(0)
  %g.0 = f32[50]{0} get-tuple-element(%p.3), index=0
  %c = f32[50]{0} copy(%g.0)
  %a.1 = f32[50]{0} abs(%c)
  ROOT %t.0 = (f32[50]{0}) tuple(%a.1)
}

%step (p.4: (f32[50], f32[50])) -> (f32[50]) {
  %p.4 = (f32[50]{0}, f32[50]{0}) parameter(0)
  %g.1 = f32[50]{0} get-tuple-element(%p.4), index=0
  %h = bf16[50]{0} convert(%g.1)
  %s = bf16[50]{0} sqrt(%h)
  %d = bf16[50]{0} bitcast(%s)
  ROOT %t.1 = (f32[50]{0}) tuple(%d)
}

ENTRY %main (x: f32[50], y: f32[], i: s32[]) -> (f32[50]) {
  %x = f32[50]{0} parameter(0)
  %y = f32[] parameter(1)
  %i = s32[] parameter(2)
  %scalar = f32[] add(%y, %y)
  %f = f32[50]{0} fusion(%x, %scalar), kind=kLoop, calls=%fused, backend_config={"outer_dimension_partitions":["2"]}
  %call.1 = f32[50]{0} call(%f), to_apply=%called
  %both = (f32[50]{0}, /*index=1*/f32[50]{0}) tuple(%f, %call.1)
  ROOT %if = (f32[50]{0}) conditional(%i, %both, %both), branch_computations={%collect, %step}
}
"""


def test_copies_and_bytes_of_a_tpu_are_those_of_hbm():
    """`%there` copies an argument within HBM, `%back` carries a result there from the chip; `%part` moves a slice."""
    assert copies_to_hbm(TPU) == ["there"]
    assert hbm_bytes(TPU) == 2 * 400 + 400 + 400 + 40 + 400  # In the order of the program.
    assert collectives(TPU) == {"all-reduce": 1, "send": 1} and collectives(HLO) == {}
    assert aliased(TPU) == 2 and aliased(HLO) == 0
    assert shapes(TPU, "copy", "copy-start") == [(100,), (100,), (100,), ()]


TPU = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, must-alias) }, entry_computation_layout={(f32[100]{0:T(128)})->f32[100]{0:T(128)}}

ENTRY %main.7 (p.0: f32[100]) -> (f32[100], f32[100]) {
  %p.0 = f32[100]{0:T(128)} parameter(0)
  %there = f32[100]{0:T(128)} copy(%p.0)
  %sum = f32[100]{0:T(128)S(1)} all-reduce(%there), replica_groups={{0,1}}, to_apply=%add
  %back = (f32[100]{0:T(128)}, f32[100]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%sum)
  %done = f32[100]{0:T(128)} copy-done(%back)
  %part = (f32[100]{0:T(128)}, f32[10]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%done), slice={[0:10]}
  %half = f32[10]{0:T(128)S(1)} slice-done(%part)
  %sent = (f32[100]{0:T(128)S(1)}, u32[]{:S(2)}, token[]{:S(2)}) send(%done), channel_id=1
  ROOT %out = (f32[100]{0:T(128)}, f32[100]{0:T(128)}) tuple(%there, %done)
}
"""  # noqa: E501
