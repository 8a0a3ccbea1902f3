"""Every family at once: importing this makes all configurations known to a parser that looks for subclasses."""

from pipeline.models.classifier import ClassifierConfig
from pipeline.models.recurrent import GRUConfig, LSTMConfig, RNNConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

FAMILIES = (
    RNNConfig,
    GRUConfig,
    LSTMConfig,
    RecurrentSeq2SeqConfig,
    TransformerSeq2SeqConfig,
    TransformerConfig,
    ClassifierConfig,
)
