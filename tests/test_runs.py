import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from post_platform.runs import distinct


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int64]), arrays.array_shapes(min_dims=1, max_dims=3, min_side=0)
    )
)
def test_distinct_values_are_numpys(values):
    np.testing.assert_array_equal(distinct(values), np.unique(values))
    np.testing.assert_array_equal(distinct(values.T), np.unique(values))
