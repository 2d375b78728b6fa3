"""Other methods under the same contract, to compare with Prompt-to-Prompt and with moves by attention."""

from minip2p.baselines.feature_guidance import FeatureGuidance, feature_guided_move
from minip2p.baselines.masactrl_plug_and_play import MasaCtrl, PlugAndPlay
from minip2p.baselines.self_guidance import SelfGuidance, self_guided_move

__all__ = ["FeatureGuidance", "MasaCtrl", "PlugAndPlay", "SelfGuidance", "feature_guided_move", "self_guided_move"]
