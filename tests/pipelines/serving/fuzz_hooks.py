import schemathesis
from hypothesis import strategies as st

from tests.pipelines.serving.in_process import png

schemathesis.openapi.format("binary", st.one_of(st.just(png()), st.binary()))
