"""Every operator that an archive may name: those known to read and write nothing but tensors.

An operator's in-place form (`add_` beside `add`) and its overloads come with it, save those that write to another
argument, such as `out`. Left out on purpose: what reads or writes files (`from_file`); what may reach past a tensor's
memory or trusts indices unchecked (`set_`, `resize_`, `_reshape_alias`, `linalg_lu_solve`, `fractional_max_pool2d`);
what makes sparse, quantised or nested tensors; and what may run without an end (`while_loop`).

It does not know which operators the engine can serve: a random one that no site claims passes here, and
`service.graph.verify` refuses it.
"""

import re
from typing import Any

import torch

import service.dropout  # noqa: F401 # defines our operators
from service.errors import UnsafeArchive

_POINTWISE = """
    abs acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan
    atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu
    clamp clamp_max clamp_min clip complex conj conj_physical copysign cos cosh deg2rad digamma div divide elu eq
    erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac gcd ge gelu glu greater
    greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 imag isclose isfinite isin isinf
    isnan isneginf isposinf isreal lcm ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt maximum minimum mish
    mul multiply mvlgamma nan_to_num ne neg negative nextafter not_equal polar polygamma positive pow prelu rad2deg
    real reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh
    softplus softshrink special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2
    special_expit special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_i0e special_i1
    special_i1e special_log1p special_log_ndtr special_log_softmax special_logit special_logsumexp
    special_multigammaln special_ndtr special_ndtri special_psi special_round special_sinc special_softmax
    special_xlog1py special_xlogy special_zeta sqrt square sub subtract tan tanh threshold true_divide trunc where
    xlogy __and__ __iand__ __or__ __ior__ __xor__ __ixor__ __lshift__ __rshift__
"""
_REDUCTIONS = """
    all amax amin aminmax any argmax argmin argsort bincount bucketize corrcoef count_nonzero cov cummax cummin
    cumprod cumsum cumulative_trapezoid diff dist histc kthvalue logcumsumexp logsumexp max mean median min mode
    msort nanmean nanmedian nanquantile nansum norm prod quantile searchsorted sort std std_mean sum topk trapezoid
    trapz var var_mean _unique2 unique_consecutive unique_dim
"""
_SHAPES = """
    adjoint alias as_strided atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors broadcast_to
    cartesian_prod cat chunk clone column_stack combinations concat concatenate contiguous copy detach diag
    diag_embed diagonal diagonal_scatter diagflat dsplit dstack expand expand_as fill flatten flip fliplr flipud
    gather hsplit hstack index index_add index_copy index_fill index_put index_reduce index_select lift_fresh_copy
    mH mT masked_fill masked_scatter masked_select matrix_H meshgrid moveaxis movedim narrow nonzero nonzero_numpy
    numpy_T one_hot argwhere pad pad_sequence permute pixel_shuffle pixel_unshuffle channel_shuffle put ravel repeat
    repeat_interleave reshape reshape_as resolve_conj resolve_neg roll rot90 scatter scatter_add scatter_reduce
    select select_scatter slice slice_scatter split split_with_sizes squeeze stack sum_to_size swapaxes swapdims t
    take take_along_dim tensor_split tile transpose trace tril triu unbind unflatten unfold unsafe_chunk
    unsafe_split unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real vsplit vstack zero
    constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d _unsafe_view _pad_circular _pad_enum expand_copy permute_copy select_copy slice_copy
    squeeze_copy transpose_copy unsqueeze_copy view_copy _conj _neg_view _to_copy to type_as _cast_Float _cast_Long
"""
_FACTORIES = """
    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye full full_like
    hamming_window hann_window kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones
    new_zeros ones ones_like scalar_tensor tril_indices triu_indices zeros zeros_like vander
"""
_ALGEBRA = """
    addbmm addmm addmv addr baddbmm bilinear bmm cdist chain_matmul cholesky cholesky_inverse cholesky_solve
    cosine_similarity cross det dot einsum inner inverse kron linalg_cholesky linalg_cholesky_ex linalg_cond
    linalg_cross linalg_det linalg_diagonal linalg_eig linalg_eigh linalg_eigvals linalg_eigvalsh
    linalg_householder_product linalg_inv linalg_inv_ex linalg_lu linalg_lu_factor linalg_matmul linalg_matrix_exp
    linalg_matrix_norm linalg_matrix_power linalg_matrix_rank linalg_multi_dot linalg_norm linalg_pinv linalg_qr
    linalg_slogdet linalg_solve linalg_solve_ex linalg_solve_triangular linalg_svd linalg_svdvals linalg_vander
    linalg_vecdot linalg_vector_norm linear logdet matmul matrix_exp matrix_power mm mv outer ger pairwise_distance
    pdist pinverse qr renorm slogdet svd tensordot triangular_solve vdot _euclidean_dist _weight_norm
    norm_except_dim _linalg_det _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd fft_fft fft_fft2
    fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_ihfft fft_irfft
    fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn istft stft
"""
_LAYERS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d affine_grid_generator avg_pool1d avg_pool2d
    avg_pool3d batch_norm native_batch_norm _native_batch_norm_legit_no_training col2im conv1d conv2d conv3d
    conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution embedding embedding_bag
    embedding_renorm grid_sampler grid_sampler_2d grid_sampler_3d group_norm native_group_norm gru gru_cell im2col
    instance_norm layer_norm native_layer_norm log_softmax _log_softmax lstm lstm_cell max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d
    max_unpool3d rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell _pack_padded_sequence _pad_packed_sequence
    scaled_dot_product_attention softmax _softmax _safe_softmax upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss
    cross_entropy_loss hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss nll_loss
    nll_loss2d nll_loss_nd poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
"""
_RANDOM = """
    alpha_dropout bernoulli cauchy dropout exponential feature_alpha_dropout feature_dropout geometric log_normal
    multinomial native_dropout normal poisson rand rand_like randint randint_like randn randn_like random randperm
    uniform
"""
_SIZES_AND_ASSERTIONS = """
    item _local_scalar_dense sym_size sym_stride sym_numel sym_storage_offset sym_constrain_range
    sym_constrain_range_for_size _assert_async _assert_scalar _assert_tensor_metadata
"""
_GROUPS = (_POINTWISE, _REDUCTIONS, _SHAPES, _FACTORIES, _ALGEBRA, _LAYERS, _RANDOM, _SIZES_AND_ASSERTIONS)
ATEN = frozenset(" ".join(_GROUPS).split())
_PYTHON = """
    _operator.add _operator.sub _operator.mul _operator.floordiv _operator.mod _operator.truediv _operator.pow
    _operator.neg _operator.pos _operator.eq _operator.ne _operator.lt _operator.le _operator.gt _operator.ge
    _operator.and_ _operator.or_ math.trunc torch.sym_int torch.sym_float torch.sym_max torch.sym_min torch.sym_not
    torch.sym_ite torch._sym_sqrt
"""
_NESTING = """
    torch.ops.higher_order.cond torch.ops.higher_order.wrap_with_autocast
    torch.ops.higher_order.wrap_with_set_grad_enabled
"""
_OUTSIDE_TENSORS = frozenset((_PYTHON + _NESTING).split())
_OVERLOAD = re.compile(r"torch\.ops\.(aten|thinnet)\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")


def checked_operator(target: str) -> str:
    """Return an operator's name as an archive writes it.

    Raises:
        UnsafeArchive: It is not known to be pure, or this torch or thinnet does not have it.
    """
    if target in _OUTSIDE_TENSORS:
        return target
    found = _OVERLOAD.fullmatch(target)
    if found is None or not (found[1] == "thinnet" or _is_known(found[2])):
        raise UnsafeArchive(
            f"the graph runs {target[:120]!r}, which is not on thinnet's list of operations that only compute; use "
            "operations of torch's own layers instead and export again"
        )
    operator = getattr(getattr(getattr(torch.ops, found[1]), found[2], None), found[3], None)
    if not isinstance(operator, torch._ops.OpOverload):
        owner = "thinnet" if found[1] == "thinnet" else f"torch {torch.__version__}"
        raise UnsafeArchive(
            f"the graph runs {found[1]}::{found[2]}.{found[3]}, which this {owner} does not have; use the version that "
            "the file was exported with, or export it again with this one"
        )
    if not _writes_at_most_its_operand(operator._schema):
        raise UnsafeArchive(
            f"the graph runs {target!r}, which writes to an argument; use the form that returns its result"
        )
    return target


def _is_known(name: str) -> bool:
    return name in ATEN or (not name.endswith("__") and name.removesuffix("_") in ATEN)


def _writes_at_most_its_operand(schema: Any) -> bool:
    """Tell whether an operator is on tensors, and writes to nothing but its first argument, its name saying so."""
    written = [
        argument.name
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and not (index == 0 and _is_in_place(schema))
    ]
    on_tensors = "Tensor" in str(schema) or schema.name.removeprefix("aten::") in _SIZES_AND_ASSERTIONS.split()
    return on_tensors and not written


def _is_in_place(schema: Any) -> bool:
    name = schema.name.split("::")[1]
    return bool(name.startswith("__i") or name.endswith("_"))
